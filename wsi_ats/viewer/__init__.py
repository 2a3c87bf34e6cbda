"""Scores as a web page: every slide at full resolution, with attention, drawn tiles and annotations.

``tiles`` cuts a slide into the tiles of a page and keeps few slides open. ``annotations`` reads outlines,
``overlays`` says what is drawn on a slide, and ``plot`` makes Bokeh's plot of it. ``collection`` answers all
requests of the page (``page/``) from a folder of scores. ``server`` serves it to this machine, and ``static``
writes it as files for another web server.
"""
