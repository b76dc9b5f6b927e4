"""Bytes to PDU and back (RFC 7143 section 11). This room knows no session, no role and no socket.

``const`` the numbers · ``pdu`` every PDU by name and opcode (``bhs``, ``requests``, ``responses``) · ``ahs`` additional
header segments · ``lun`` the LUN field · ``digest`` CRC32C · ``framer`` the receiving side of a stream · ``outbox`` the
sending side.
"""
