"""`python -m pipeline` is `mammo`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
