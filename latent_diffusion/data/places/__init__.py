"""Where data lie, and how their files are read: a folder, an archive, the hub; a read that stalls ends."""
