"""``python -m seqattn`` is the command line, as torchrun starts it."""

from __future__ import annotations

from seqattn.cli import main

if __name__ == "__main__":
    main()
