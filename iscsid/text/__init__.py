"""key=value text (RFC 7143 sections 6 and 13): codec, keys, rules and negotiation, without PDUs and without I/O."""
