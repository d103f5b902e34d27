"""``python -m launch``: the command line, for an interpreter whose scripts are not on PATH."""

from launch.cli import main

if __name__ == "__main__":
    main()
