"""How a picture was made: the record in its file, and other tools' metadata."""
