"""Make captioned clips of six scenarios of ViZDoom: H.264 files and a manifest."""

if __name__ == "__main__":  # the playing processes load this file too
    from megavrc.config import command
    from megavrc.video.gameplay_set import make_gameplay

    command(make_gameplay)
