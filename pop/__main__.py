"""``python -m pop``."""

from pop.cli import main

if __name__ == "__main__":
    main()
