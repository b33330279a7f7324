"""Images with boxes and polygons: sets in COCO's format, prepared once and read at random."""
