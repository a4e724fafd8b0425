"""A web page that restores images: `sam4ir demo`."""
