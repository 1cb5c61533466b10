"""Show a result file as a table, compare two, or make the tables of a page anew."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("results")
