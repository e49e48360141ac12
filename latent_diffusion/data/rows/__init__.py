"""The rows of a data set: tables, columns, captions, kohya's folders, and the interface of every source."""
