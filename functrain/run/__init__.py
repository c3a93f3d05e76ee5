"""What a run is made of, beside its arithmetic: its data and the place in it, its directory, its progress, its end."""
