"""The numbers and the picture of `lstmserve top`; cli/monitor.py is the command."""
