"""Finds what each input and output of the file is: an input, an output, a state or a constant."""
