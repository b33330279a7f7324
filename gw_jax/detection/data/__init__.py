"""Images with objects: prepared sets, and batches of them on canvases of fixed size. No module here uses a device."""
