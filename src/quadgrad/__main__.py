"""``python -m quadgrad``: the command line where scripts are not on the path."""

from quadgrad._cli.main import main

if __name__ == "__main__":
    main()
