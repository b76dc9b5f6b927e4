"""``python -m iscsid`` is the command ``iscsid``."""

from iscsid.cli import main

if __name__ == "__main__":
    main()
