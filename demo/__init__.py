"""``make demo``: from nothing to a search inside a video, through the HTTP API alone."""
