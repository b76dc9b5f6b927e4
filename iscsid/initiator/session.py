"""One session that outlives its connections, without I/O: queue, replay, time-outs, signs of life, redirection.

Bytes and time are arguments. Whoever owns the socket

* opens a connection to ``portal`` when ``connect_at`` has come, and says ``connected`` or ``lost``;
* receives into ``framer.writable()`` and says ``received``; sends what ``outbox`` holds;
* calls ``tick`` no later than ``next_tick`` says.

What callers ``submit`` goes out as far as the target's command window and ``depth`` allow. When the connection breaks,
commands that may be done twice are sent again on the next one, in their order; the others end with OutcomeUnknown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from iscsid.errors import (
    CommandAborted,
    CommandTimeout,
    ConnectionFailed,
    InitiatorError,
    LoginRefused,
    OutcomeUnknown,
    RemoteProtocolError,
)
from iscsid.initiator.connection import InitiatorConnection
from iscsid.initiator.outcome import AT_ONCE, LATER, NEVER, error_of, retry
from iscsid.initiator.task import Management, Task, TextExchange, Ticket
from iscsid.initiator.url import Credentials, Portal, parse_portal
from iscsid.session.authentication import Authenticator
from iscsid.session.chap import AuthenticationFailed, ChapInitiator
from iscsid.session.login_initiator import InitiatorLogin, LoginFailed
from iscsid.text.keys import INITIATOR_OFFERS
from iscsid.wire.const import LoginStatus, TmfFunction, TmfResponse

REDIRECT_LIMIT: Final = 8  # moves in a row until a login succeeds: two targets may send us to each other
ATTENTIONS_KEPT: Final = 32
BACK_OFF: Final = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.0)  # seconds before each further attempt to connect
WAIT_LIMIT: Final = 30.0  # seconds: the longest Time2Wait of a target that is honoured
REPLAYS: Final = 3  # of a command at least, however long the target was away in between
BUSY_PAUSE: Final = 0.05  # seconds after the first BUSY or TASK SET FULL; twice as long after each further one
BUSY_PAUSE_LIMIT: Final = 1.0
LOOK_EVERY: Final = 0.25  # seconds between two looks at what may be late: it costs more than a command
_ENDED: Final = frozenset(  # what an aborted task is after these answers
    {TmfResponse.FUNCTION_COMPLETE, TmfResponse.TASK_DOES_NOT_EXIST, TmfResponse.LUN_DOES_NOT_EXIST}
)
_LEAVE_MARGIN: Final = 1.0  # seconds before the target's deadline at which we log out with commands unanswered
_FATAL: Final = frozenset(
    {LoginStatus.AUTHENTICATION_FAILURE, LoginStatus.AUTHORIZATION_FAILURE, LoginStatus.UNSUPPORTED_VERSION}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How a session behaves. Times in seconds.

    ``depth``: commands in flight at most. ``timeout``: of a command, from its sending. ``recovery_timeout``: how long a
    lost target may stay away until what waits for it fails. ``ping_interval``: silence after which the target is asked
    for a sign of life, and ``ping_timeout`` how long it may take for it. ``offers`` go over those of
    ``text.keys.INITIATOR_OFFERS``.
    """

    initiator_name: str
    target_name: str | None
    isid: int
    credentials: Credentials | None = None
    header_digest: bool = False
    data_digest: bool = False
    depth: int = 64
    timeout: float = 30.0
    login_timeout: float = 15.0
    recovery_timeout: float = 60.0
    abort_timeout: float = 5.0
    ping_interval: float = 15.0
    ping_timeout: float = 10.0
    offers: Mapping[str, str] = field(default_factory=dict)

    def all_offers(self) -> dict[str, str]:
        offers = {**INITIATOR_OFFERS, **self.offers}
        for name, wanted in (("HeaderDigest", self.header_digest), ("DataDigest", self.data_digest)):
            if wanted:
                offers[name] = "CRC32C"
        return offers


class InitiatorSession:
    """One session.

    Args:
        options: see there.
        portal: where the target is; a redirection changes it.
        nonce: gives ``text.chap.NONCE_LENGTH`` random bytes for each login with CHAP.

    Attributes:
        connection: None between two connections.
        connect_at: when the next connection is due, None when none is.
        failure: why the last recovery was given up, None when all is well.
        attentions: sense data of the last commands that were sent again (unit attentions), and what the target told by
            an Asynchronous Message.
        logins: how many there were.
        closed: nothing is done any more.
    """

    def __init__(self, options: SessionOptions, portal: Portal, nonce: Callable[[], bytes]) -> None:
        self.options = options
        self.portal = self._home = portal
        self.connection: InitiatorConnection | None = None
        self.connect_at: float | None = None
        self.failure: InitiatorError | None = None
        self.attentions: deque[bytes] = deque(maxlen=ATTENTIONS_KEPT)
        self.logins = 0
        self.closed = False
        self._nonce = nonce
        self._depth = options.depth
        self._queue: deque[Task] = deque()
        self._requests: deque[Management | TextExchange] = deque()
        self._pausing: list[Task] = []
        self._expired: set[int] = set()  # tags of tasks whose ABORT TASK is under way
        self._now = 0.0
        self._heard = 0.0
        self._look_at = 0.0
        self._pinged_at = 0.0
        self._shut_since: float | None = None  # with nothing under way that could open the window
        self._ask_at = 0.0
        self._login_deadline = 0.0
        self._lost_since: float | None = None
        self._attempts = 0
        self._redirects = 0
        self._closing = False
        self._leave_at: float | None = None
        self._logged_out = False

    # --- what callers want --------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """The login is over and the connection stands."""
        return self.connection is not None and self.connection.ready

    @property
    def in_flight(self) -> int:
        """Commands that were sent and not answered."""
        return 0 if self.connection is None else len(self.connection.tasks)

    @property
    def waiting(self) -> int:
        """Commands that were not sent yet."""
        return len(self._queue) + len(self._pausing)

    @property
    def busy(self) -> bool:
        """Anything is unfinished."""
        return bool(self.in_flight or self.waiting or self._requests or (self.connection and self.connection.requests))

    def submit(self, task: Task, now: float) -> None:
        """Take a command; it goes out at once where that is allowed."""
        connection = self.connection
        if connection is not None and connection.ready and not self._queue and self._may_start(connection):
            task.deadline = now + task.timeout
            connection.start(task)
            return
        self._queue.append(task)
        self._wake(now)

    def ask(self, request: Management | TextExchange, now: float) -> None:
        """Take a task management function or a text."""
        if isinstance(request, Management) and request.victim is not None:
            request.victim.last = True
            if self.withdraw(request.victim):
                request.response = TmfResponse.FUNCTION_COMPLETE
                request.end()
                return
        self._requests.append(request)
        self._wake(now)

    def abort(self, task: Task, now: float) -> None:
        """Be rid of a command that is not over: it ends as soon as the target does nothing with it any more."""
        task.last = True
        if not self.withdraw(task):
            task.deadline = self._look_at = 0.0
            self.tick(now)

    def withdraw(self, task: Task) -> bool:
        """End a command that waits to be sent; False where it does not: it is at the target, or over."""
        for waiting in (self._queue, self._pausing):
            if task in waiting:
                waiting.remove(task)
                task.end(CommandAborted("it was taken back before it was sent"))
                return True
        return False

    def close(self, now: float) -> None:
        """Log out, after what was sent has been answered; what was not sent is dropped."""
        self._closing = True
        self._drop_waiting(lambda: CommandAborted("the session was closed"))
        if self.connection is None or not self.connection.ready:
            self._end(CommandAborted("the session was closed"))
            return
        self._leave_at = now + self.options.abort_timeout
        self._pump(now)

    def _wake(self, now: float) -> None:
        if self.closed or self._closing:
            self._drop_waiting(lambda: CommandAborted("the session is closed"))
        elif self.connection is not None:
            self._pump(now)
        elif self.connect_at is None:
            self.open(now)

    # --- connections --------------------------------------------------------------------------------------------------

    def open(self, now: float) -> None:
        """Want a connection, now. A target that was given up has one attempt, not ``recovery_timeout`` over again."""
        away = self.options.recovery_timeout if self.failure is not None else 0.0
        self.failure = None
        self._attempts = 0
        self._lost_since = now - away if self.logins else None
        self.connect_at = now

    def connected(self, now: float) -> InitiatorConnection:
        """A connection to ``portal`` stands: begin the login."""
        options = self.options
        login = InitiatorLogin(
            options.initiator_name,
            options.target_name,
            isid=options.isid,
            offers=options.all_offers(),
            authenticator=self._authenticator(),
        )
        self.connection = connection = InitiatorConnection(login, self._on_ended)
        connection.attention = self.attentions.append
        self.connect_at = None
        self._now = self._heard = now
        self._login_deadline = now + options.login_timeout
        return connection

    def _authenticator(self) -> Authenticator | None:
        credentials = self.options.credentials
        if credentials is None:
            return None
        return ChapInitiator(
            credentials.user,
            credentials.secret,
            self._nonce(),
            target_user=credentials.target_user,
            target_secret=credentials.target_secret,
        )

    def lost(self, error: Exception, now: float) -> None:
        """There is no connection (any more), because of ``error``: decide what becomes of everything."""
        connection, self.connection = self.connection, None
        self._now = now
        self._leave_at = None
        if connection is not None:
            self._take_back(connection, error)
        if self._closing:
            self._end(CommandAborted("the session was closed"))
            return
        if isinstance(error, LoginFailed) and error.moved:
            self._follow(error, now)
            return
        self.portal = self._home
        self._redirects = 0  # the moves in a row have come to an end
        wait = connection.reconnect_after if connection is not None else None
        if wait is None and (not self.logins or _is_fatal(error)):
            self._give_up(error)
        elif not self.waiting and not self._requests:
            self.connect_at = None  # the next command finds the target again
            if wait:
                self.failure = None
        else:
            self._retry(error, now, wait)

    def _retry(self, error: Exception, now: float, wait: float | None) -> None:
        if self._lost_since is None:
            self._lost_since = now
            self._attempts = 0
        if now - self._lost_since >= self.options.recovery_timeout:
            self._give_up(error)
            return
        # A target that lets us in and breaks under the same commands as before gets its rest too.
        attempts = max(self._attempts, max((task.breaks for task in self._queue), default=0) - 1)
        pause = BACK_OFF[min(attempts, len(BACK_OFF) - 1)] if wait is None else min(wait, WAIT_LIMIT)
        self._attempts += 1
        self.connect_at = min(now + pause, self._lost_since + self.options.recovery_timeout)

    def _follow(self, error: LoginFailed, now: float) -> None:
        """Go where the target has moved to (section 11.13.5); for good only where it says so."""
        self._redirects += 1
        if self._redirects > REDIRECT_LIMIT:
            self._give_up(ConnectionFailed(f"the target sends us on and on, at last to {error.address}"))
            return
        try:
            self.portal = parse_portal(error.address.partition(",")[0])
        except InitiatorError as reason:
            self._give_up(reason)
            return
        if error.status == LoginStatus.TARGET_MOVED_PERMANENTLY:
            self._home = self.portal
        self.connect_at = now

    def _take_back(self, connection: InitiatorConnection, error: Exception) -> None:
        """Requeue what was under way, in its order, or end it."""
        connection.outbox.clear()
        for request in connection.requests.values():
            request.end(ConnectionFailed("the connection broke"))
        again = []
        for task in connection.tasks.values():
            if task.tag in self._expired:
                task.end(self._late(task))
            elif task.last:
                task.end(OutcomeUnknown("the connection broke under a command that was to be aborted"))
            elif task.replay and self._has_worn_out(task):
                task.end(_failure(error))
            elif task.replay:
                task.reset()
                again.append(task)
            else:
                task.end(OutcomeUnknown("the connection broke under a command that may not be repeated"))
        self._expired.clear()
        self._queue.extendleft(reversed(again))

    def _has_worn_out(self, task: Task) -> bool:
        """Whether one connection after the other has broken under a task, for longer than a target may stay away."""
        task.breaks += 1
        task.broken_at = task.broken_at or self._now
        return task.breaks > REPLAYS and self._now - task.broken_at >= self.options.recovery_timeout

    def _give_up(self, error: Exception) -> None:
        self.connect_at = self._lost_since = None
        self._attempts = self._redirects = 0
        self.portal = self._home
        self.failure = failure = _failure(error)
        self._drop_waiting(lambda: failure)

    def _end(self, error: InitiatorError) -> None:
        self.closed = True
        self.connect_at = None
        connection, self.connection = self.connection, None
        if connection is not None:
            for task in connection.tasks.values():
                task.end(error if task.replay else OutcomeUnknown(f"{error}; the command may have been done"))
            for request in connection.requests.values():
                request.end(error)
        self._drop_waiting(lambda: error)

    def _drop_waiting(self, error: Callable[[], InitiatorError]) -> None:
        tickets: list[Ticket] = [*self._queue, *self._pausing, *self._requests]
        self._queue.clear()
        self._pausing.clear()
        self._requests.clear()
        for ticket in tickets:
            ticket.end(error())

    # --- bytes and time -----------------------------------------------------------------------------------------------

    def received(self, count: int, now: float) -> None:
        """Act on ``count`` more bytes in the framer's buffer; ``connection`` is None afterwards when it is over."""
        connection = self.connection
        assert connection is not None
        self._now = self._heard = now
        was_ready = connection.ready
        connection.framer.received(count)
        try:
            connection.receive()
        except RemoteProtocolError as error:
            self.lost(error, now)
            return
        if connection.ready and not was_ready:
            self._on_established()
        if self._queue or self._requests or connection.leave_within is not None or self._leave_at is not None:
            self._pump(now)

    def _on_established(self) -> None:
        self.logins += 1
        self.failure = self._lost_since = None
        self._attempts = self._redirects = 0
        self._logged_out = False

    def _may_start(self, connection: InitiatorConnection) -> bool:
        return (
            len(connection.tasks) < self._depth
            and connection.window_open
            and connection.leave_within is None
            and not self._closing
        )

    def _pump(self, now: float) -> None:
        """Send what may be sent now."""
        connection = self.connection
        if connection is None or not connection.ready:
            return
        requests = self._requests
        while requests and (isinstance(requests[0], Management) or connection.window_open):
            request = requests.popleft()
            if isinstance(request, Management) and _comes_too_late(request, connection):
                request.response = TmfResponse.TASK_DOES_NOT_EXIST
                request.end()
                continue
            request.deadline = now + request.timeout
            connection.ask(request)
        queue = self._queue
        while queue and self._may_start(connection):
            task = queue.popleft()
            task.deadline = now + task.timeout
            connection.start(task)
        if (queue or requests) and not connection.tasks and not connection.window_open:
            self._ask_for_room(connection, now)
        else:
            self._shut_since = None
        self._maybe_leave(connection, now)

    def _ask_for_room(self, connection: InitiatorConnection, now: float) -> None:
        """The last answer may have gone out before its command left the window: ask where that is now."""
        if self._shut_since is None:
            self._shut_since = self._ask_at = now
        if now - self._shut_since >= self.options.timeout:
            self._shut_since = None
            self._drop_waiting(lambda: CommandTimeout(f"the target takes no commands for {self.options.timeout:g} s"))
        elif not connection.pinged and now >= self._ask_at:
            self._ask_at = now + LOOK_EVERY
            self._pinged_at = now
            connection.ping()

    def _maybe_leave(self, connection: InitiatorConnection, now: float) -> None:
        """Log out when that is wanted, by us or by the target, and nothing is under way any more or time is up."""
        if connection.leave_within is not None and self._leave_at is None:
            self._leave_at = now + max(0.0, connection.leave_within - _LEAVE_MARGIN)
        if self._leave_at is None or self._logged_out:
            return
        if now >= self._leave_at or not (connection.tasks or connection.requests):
            self._logged_out = True
            connection.log_out()
            self._leave_at = now + self.options.abort_timeout

    def next_tick(self, now: float) -> float:
        """Return in how many seconds ``tick`` is due; coarse, for there is nothing to gain by being exact."""
        if self.connection is None:
            return max(0.0, self.connect_at - now) if self.connect_at is not None else 1.0
        if self._pausing:
            return max(0.0, min(task.not_before for task in self._pausing) - now)
        tasks = self.connection.tasks
        # The task that has waited longest; those with shorter time-outs behind it are found by the coarse look.
        late = next(iter(tasks.values())).deadline if tasks else now + 2 * LOOK_EVERY
        return max(0.0, min(2 * LOOK_EVERY, max(late, self._look_at) - now))

    def tick(self, now: float) -> None:
        """Look at the clock: time-outs, pauses that are over, signs of life."""
        self._now = now
        if self._pausing:
            self._resume(now)
        connection = self.connection
        if connection is None:
            return
        if not connection.ready:
            if now >= self._login_deadline:
                self.lost(ConnectionFailed("the login takes too long"), now)
            return
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self._look(connection, now)
        self._pump(now)

    def _look(self, connection: InitiatorConnection, now: float) -> None:
        """Look at everything that may be late."""
        if any(now >= request.deadline for request in connection.requests.values()):
            # The target does not even manage that: whatever it does now is not for us any more.
            for request in [x for x in connection.requests.values() if now >= x.deadline]:
                del connection.requests[request.tag]
                request.end(CommandTimeout(f"no answer within {request.timeout:g} seconds"))
            self.lost(ConnectionFailed("the target does not answer task management"), now)
            return
        self._abort_late(connection, now)
        if self._logged_out and self._leave_at is not None and now >= self._leave_at:
            self.lost(ConnectionFailed("the target does not answer the logout"), now)
            return
        silent = now - self._heard
        if not connection.pinged and silent >= self.options.ping_interval:
            self._pinged_at = now
            connection.ping()
        elif connection.pinged and min(silent, now - self._pinged_at) >= self.options.ping_timeout:
            self.lost(ConnectionFailed(f"the target has been silent for {silent:.0f} seconds"), now)

    def _resume(self, now: float) -> None:
        due = [task for task in self._pausing if task.not_before <= now]
        if due:
            self._pausing = [task for task in self._pausing if task.not_before > now]
            self._queue.extend(due)
            self._wake(now)

    def _abort_late(self, connection: InitiatorConnection, now: float) -> None:
        for task in connection.tasks.values():
            if now >= task.deadline and task.tag not in self._expired:
                self._expired.add(task.tag)
                task.last = True
                self._requests.append(
                    Management(TmfFunction.ABORT_TASK, task.lun, task, timeout=self.options.abort_timeout)
                )

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _on_ended(self, ticket: Ticket) -> None:
        """A request is over; tasks come here only where there is something to decide."""
        if isinstance(ticket, Task):
            self._on_task(ticket)
            return
        ticket.end(ticket.error)
        if isinstance(ticket, Management) and ticket.victim is not None and ticket.victim.tag in self._expired:
            self._on_abort(ticket.victim, ticket.response)

    def _on_abort(self, victim: Task, response: int) -> None:
        """The answer to an ABORT TASK of ours. If the task is still there, the target knows nothing of it.

        Or it goes on with it, and would perhaps do it after what the caller does next: then all has to end.
        """
        self._expired.discard(victim.tag)
        connection = self.connection
        assert connection is not None
        if connection.tasks.pop(victim.tag, None) is not None:
            connection.forget(victim)
            victim.end(self._late(victim))
            if response not in _ENDED:
                raise RemoteProtocolError("the target does not abort a command")

    def _late(self, task: Task) -> InitiatorError:
        if task.replay:
            return CommandTimeout(f"no answer within {task.timeout:g} seconds; the command was aborted")
        return OutcomeUnknown(f"no answer within {task.timeout:g} seconds; it may have been done before it was aborted")

    def _on_task(self, task: Task) -> None:
        expired = task.tag in self._expired
        if task.error is not None:
            task.end(self._late(task) if expired else task.error)
        elif task.raw:
            task.end()
        elif not task.status:
            task.end(_inexact(task))
        elif (decision := NEVER if task.last else retry(task)) == AT_ONCE:
            self.attentions.append(task.sense)
            self._again(task)
            self._queue.appendleft(task)
        elif decision == LATER and self._now < self._patience_of(task):
            self._again(task)
            pause = min(BUSY_PAUSE * 2 ** min(task.attempts - 1, 10), BUSY_PAUSE_LIMIT)
            task.not_before = self._now + pause
            self._pausing.append(task)
        else:
            task.end(error_of(task.status, task.sense) or _inexact(task))

    @staticmethod
    def _patience_of(task: Task) -> float:
        """Until when a busy target is asked again: the first deadline, for each attempt has a new one."""
        task.patience = task.patience or task.deadline
        return task.patience

    @staticmethod
    def _again(task: Task) -> None:
        task.attempts += 1
        task.reset()


def _comes_too_late(request: Management, connection: InitiatorConnection) -> bool:
    """Whether the task to be aborted is not at the target: its tag may be another one's by now."""
    victim = request.victim
    return victim is not None and connection.tasks.get(victim.tag) is not victim


def _inexact(task: Task) -> InitiatorError | None:
    """What is wrong with a good ending. Another length is: the disk may have blocks of another size by now."""
    if task.exact and task.received < len(task.buffer):
        return InitiatorError(f"the target sent {task.received} of {len(task.buffer)} bytes and calls it good")
    if task.exact and task.residual:
        wanted = task.expected - task.residual
        return InitiatorError(f"the target moved {wanted} bytes instead of {task.expected} and calls it good")
    return None


def _is_fatal(error: Exception) -> bool:
    """Whether trying again is of no use: who is not let in now is not let in later."""
    return isinstance(error, AuthenticationFailed) or (isinstance(error, LoginFailed) and error.status in _FATAL)


def _failure(error: Exception) -> InitiatorError:
    if isinstance(error, InitiatorError):
        return error
    if isinstance(error, LoginFailed):
        return LoginRefused(error.status, str(error))
    return ConnectionFailed(str(error) or type(error).__name__)
