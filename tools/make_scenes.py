"""Make synthetic captioned clips whose future is open: H.264 files and a manifest."""

if __name__ == "__main__":  # the encoding processes load this file too
    from megavrc.config import command
    from megavrc.video.scene_set import make_scenes

    command(make_scenes)
