"""A web page that generates video from a converted folder; shows the clip while its frames arrive."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("serve")
