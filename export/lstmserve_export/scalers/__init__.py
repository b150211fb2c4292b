"""The scalers that a user trained with: they make raw x the network's input, and its output raw y.

sides.py is what a user says of the inputs and of the outputs. files.py reads its files, and
attributes.py says what scikit-learn's attributes and other names compute. min_max.py finds a
MinMaxScaler that was taken for a mean and a scale.
"""
