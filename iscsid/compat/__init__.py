"""What NetBSD's libiscsi(3) had: its API, its two utilities and its file formats. The modules bear the names."""
