"""Parts that pages and figures share: the style of plots, their writer (PNG, SVG), and the base of HTML pages."""
