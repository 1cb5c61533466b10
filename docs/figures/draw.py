"""Draw the figures of the pages and write their tables anew, from the code's own objects.

python docs/figures/draw.py
"""

from canvas import IMAGES, drawings
from tables import ROOT, pages

if __name__ == "__main__":
    for name, svg in drawings().items():
        (IMAGES / name).write_text(svg)
        print(f"docs/images/{name}")
    for page, text in pages().items():
        page.write_text(text)
        print(page.relative_to(ROOT))
