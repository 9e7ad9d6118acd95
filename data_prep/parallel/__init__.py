"""Work on many items: in a process pool that outlives crashes, or on a Ray cluster."""
