"""Small programs to read and run, one folder each."""
