/*
 * The limit: the least work that answers an initiator. One thread a session receives whatever is there, parses every
 * whole PDU in it, preads or pwrites, and sends all the answers at once. No checks, no digests, no features: it exists to
 * say what CPU time per I/O the kernel and the wire format ask for, and trusts the load programs to be well-behaved.
 *
 * limit PORT IMAGE: serves IMAGE as LUN 0 of any target name on 127.0.0.1:PORT until SIGTERM.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BHS = 48,
    BLOCK = 512,
    SEGMENT = 262144,    /* MaxRecvDataSegmentLength, both ways: what libiscsi offers too */
    BURST = 262144,      /* MaxBurstLength and FirstBurstLength */
    WINDOW = 128,        /* MaxCmdSN - ExpCmdSN + 1 */
    RECEIVE = 4 << 20,
    SEND = 8 << 20,      /* flushed when less than one whole answer is free */
    LARGEST = (1 << 20) + 8 * BHS,
};

struct transfer {        /* a write whose data is not all here */
    uint32_t tag, length, got;
    uint64_t offset;
    int used;
};

struct session {
    int fd;
    uint32_t stat_sn, exp_cmd_sn;
    uint8_t *in, *out;
    size_t filled, queued;
    struct transfer transfers[WINDOW];
};

static int image;
static uint64_t image_size;

static uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return be32toh(v); }
static uint64_t get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return be64toh(v); }
static void put32(uint8_t *p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
static void put64(uint8_t *p, uint64_t v) { v = htobe64(v); memcpy(p, &v, 8); }
static uint32_t get24(const uint8_t *p) { return p[0] << 16 | p[1] << 8 | p[2]; }
static void put24(uint8_t *p, uint32_t v) { p[0] = v >> 16; p[1] = v >> 8; p[2] = v; }

static int flush(struct session *s)
{
    size_t done = 0;
    while (done < s->queued) {
        ssize_t n = send(s->fd, s->out + done, s->queued - done, MSG_NOSIGNAL);
        if (n <= 0)
            return -1;
        done += n;
    }
    s->queued = 0;
    return 0;
}

/* Start an answer to the PDU at `bhs` in the send buffer; its data segment goes behind it. */
static uint8_t *answer(struct session *s, const uint8_t *bhs, uint8_t opcode, uint8_t flags, uint32_t length)
{
    uint8_t *p;
    if (s->queued + LARGEST > SEND)
        flush(s);
    p = s->out + s->queued;
    memset(p, 0, BHS);
    p[0] = opcode;
    p[1] = flags;
    put24(p + 5, length);
    memcpy(p + 16, bhs + 16, 4);
    put32(p + 28, s->exp_cmd_sn);
    put32(p + 32, s->exp_cmd_sn + WINDOW - 1);
    s->queued += BHS + (length + 3) / 4 * 4;
    return p;
}

static void scsi_response(struct session *s, const uint8_t *bhs, uint8_t status, const uint8_t *sense)
{
    uint8_t *p = answer(s, bhs, 0x21, 0x80, sense ? 20 : 0);
    p[3] = status;
    put32(p + 24, s->stat_sn++);
    if (sense) {
        memset(p + BHS, 0, 20);
        p[BHS + 1] = 18;
        memcpy(p + BHS + 2, sense, 18);
    }
}

/* Data-In of a parameter list, GOOD status in it. */
static void parameters(struct session *s, const uint8_t *bhs, const uint8_t *data, uint32_t length)
{
    uint32_t expected = get32(bhs + 20);
    uint8_t *p;
    if (length > expected)
        length = expected;
    p = answer(s, bhs, 0x25, length < expected ? 0x83 : 0x81, length);
    put32(p + 20, 0xffffffff);
    put32(p + 24, s->stat_sn++);
    put32(p + 44, expected - length);
    memcpy(p + BHS, data, length);
}

static void read_blocks(struct session *s, const uint8_t *bhs, uint64_t offset, uint32_t length)
{
    uint32_t done = 0, number = 0;
    while (done < length) {
        uint32_t part = length - done < SEGMENT ? length - done : SEGMENT;
        int last = done + part == length;
        uint8_t *p = answer(s, bhs, 0x25, last ? 0x81 : 0, part);
        put32(p + 20, 0xffffffff);
        if (last)
            put32(p + 24, s->stat_sn++);
        put32(p + 36, number++);
        put32(p + 40, done);
        if (pread(image, p + BHS, part, offset + done) != part)
            warn("pread");
        done += part;
    }
}

/* Ask for the next burst of a write, or say that it is done. */
static void proceed(struct session *s, const uint8_t *bhs, struct transfer *t)
{
    uint8_t *p;
    if (t->got >= t->length) {
        t->used = 0;
        scsi_response(s, bhs, 0, NULL);
        return;
    }
    p = answer(s, bhs, 0x31, 0x80, 0);
    put32(p + 20, t - s->transfers);
    put32(p + 24, s->stat_sn);
    put32(p + 40, t->got);
    put32(p + 44, t->length - t->got < BURST ? t->length - t->got : BURST);
}

static void take(struct transfer *t, const uint8_t *data, uint32_t length)
{
    if (length && pwrite(image, data, length, t->offset + t->got) != length)
        warn("pwrite");
    t->got += length;
}

static void write_blocks(struct session *s, const uint8_t *bhs, uint64_t offset, uint32_t length, uint32_t have)
{
    struct transfer *t = s->transfers;
    while (t->used)
        t++;
    *t = (struct transfer){.tag = get32(bhs + 16), .length = length, .offset = offset, .used = 1};
    take(t, bhs + BHS, have);
    if (bhs[1] & 0x80)
        proceed(s, bhs, t);
}

static void data_out(struct session *s, const uint8_t *bhs, uint32_t have)
{
    struct transfer *t = s->transfers;
    while (!t->used || t->tag != get32(bhs + 16))
        if (++t == s->transfers + WINDOW)
            return;
    take(t, bhs + BHS, have);
    if (bhs[1] & 0x80)
        proceed(s, bhs, t);
}

static void scsi_command(struct session *s, const uint8_t *bhs, uint32_t have)
{
    static const uint8_t inquiry[36] = {0, 0, 6, 2, 31, 0, 0, 2, 'T', 'H', 'E', ' ', 'L', 'I', 'M', 'I',
                                        'T', ' ', 'L', 'I', 'M', 'I', 'T', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', '1'};
    static const uint8_t luns[16] = {0, 0, 0, 8};
    static const uint8_t mode[4] = {3, 0, 0x10, 0};
    static const uint8_t bad_opcode[18] = {0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20};
    const uint8_t *cdb = bhs + 32;
    uint8_t capacity[32] = {0};
    uint64_t last = image_size / BLOCK - 1;

    switch (cdb[0]) {
    case 0x28: read_blocks(s, bhs, (uint64_t)get32(cdb + 2) * BLOCK, (cdb[7] << 8 | cdb[8]) * BLOCK); break;
    case 0x88: read_blocks(s, bhs, get64(cdb + 2) * BLOCK, get32(cdb + 10) * BLOCK); break;
    case 0x2a: write_blocks(s, bhs, (uint64_t)get32(cdb + 2) * BLOCK, (cdb[7] << 8 | cdb[8]) * BLOCK, have); break;
    case 0x8a: write_blocks(s, bhs, get64(cdb + 2) * BLOCK, get32(cdb + 10) * BLOCK, have); break;
    case 0x12:
        if (cdb[1] & 1)
            parameters(s, bhs, (uint8_t[]){0, 0, 0, 1, 0}, 5); /* VPD page 00, which lists itself */
        else
            parameters(s, bhs, inquiry, sizeof inquiry);
        break;
    case 0x25:
        put32(capacity, last);
        put32(capacity + 4, BLOCK);
        parameters(s, bhs, capacity, 8);
        break;
    case 0x9e:
        put64(capacity, last);
        put32(capacity + 8, BLOCK);
        parameters(s, bhs, capacity, 32);
        break;
    case 0xa0: parameters(s, bhs, luns, sizeof luns); break;
    case 0x1a: parameters(s, bhs, mode, sizeof mode); break;
    case 0x00: case 0x35: case 0x91: scsi_response(s, bhs, 0, NULL); break;
    default: scsi_response(s, bhs, 2, bad_opcode);
    }
}

static void login(struct session *s, const uint8_t *bhs)
{
    static const char security[] = "AuthMethod=None\0TargetPortalGroupTag=1";
    static const char operational[] = "HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0"
                                      "MaxRecvDataSegmentLength=262144\0MaxBurstLength=262144\0FirstBurstLength=262144\0"
                                      "MaxOutstandingR2T=1\0MaxConnections=1\0ErrorRecoveryLevel=0\0"
                                      "DefaultTime2Wait=2\0DefaultTime2Retain=0\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes";
    int stage = bhs[1] >> 2 & 3;
    const char *text = stage ? operational : security;
    uint32_t length = stage ? sizeof operational : sizeof security;
    uint8_t *p;
    s->exp_cmd_sn = get32(bhs + 24);
    p = answer(s, bhs, 0x23, bhs[1] & 0x8f, length);
    memcpy(p + 8, bhs + 8, 6);
    p[15] = 1; /* TSIH */
    put32(p + 24, s->stat_sn++);
    memcpy(p + BHS, text, length);
}

/* One whole PDU; nonzero ends the session. */
static int execute(struct session *s, const uint8_t *bhs, uint32_t have)
{
    int opcode = bhs[0] & 0x3f;
    uint8_t *p;
    if (opcode != 0x05 && opcode != 0x03 && !(bhs[0] & 0x40))
        s->exp_cmd_sn = get32(bhs + 24) + 1;
    switch (opcode) {
    case 0x01: scsi_command(s, bhs, have); return 0;
    case 0x05: data_out(s, bhs, have); return 0;
    case 0x03: login(s, bhs); return 0;
    case 0x00:
        if (get32(bhs + 16) == 0xffffffff)
            return 0;
        p = answer(s, bhs, 0x20, 0x80, have);
        put32(p + 20, 0xffffffff);
        put32(p + 24, s->stat_sn++);
        memcpy(p + BHS, bhs + BHS, have);
        return 0;
    case 0x06:
        p = answer(s, bhs, 0x26, 0x80, 0);
        put32(p + 24, s->stat_sn++);
        return 1;
    default: return 1;
    }
}

static void *serve(void *argument)
{
    struct session *s = argument;
    int ended = 0;
    s->in = malloc(RECEIVE);
    s->out = malloc(SEND);
    while (!ended) {
        size_t at = 0;
        ssize_t n = recv(s->fd, s->in + s->filled, RECEIVE - s->filled, 0);
        if (n <= 0)
            break;
        s->filled += n;
        while (!ended && s->filled - at >= BHS) {
            uint32_t have = get24(s->in + at + 5);
            size_t whole = BHS + s->in[at + 4] * 4 + (have + 3) / 4 * 4;
            if (s->filled - at < whole)
                break;
            ended = execute(s, s->in + at, have);
            at += whole;
        }
        if (at)
            memmove(s->in, s->in + at, s->filled - at);
        s->filled -= at;
        if (flush(s))
            break;
    }
    close(s->fd);
    free(s->in);
    free(s->out);
    free(s);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct stat facts;
    int listener, on = 1;
    if (argc != 3)
        errx(2, "usage: limit PORT IMAGE");
    if ((image = open(argv[2], O_RDWR)) < 0 || fstat(image, &facts))
        err(1, "%s", argv[2]);
    image_size = facts.st_size;
    address.sin_port = htons(atoi(argv[1]));
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
        err(1, "port %s", argv[1]);
    for (;;) {
        struct session *s = calloc(1, sizeof *s);
        pthread_t thread;
        if ((s->fd = accept(listener, NULL, NULL)) < 0)
            err(1, "accept");
        setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (pthread_create(&thread, NULL, serve, s))
            errx(1, "no thread");
        pthread_detach(thread);
    }
}
