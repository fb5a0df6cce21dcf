"""Tables of bad inputs: what is wrong -> what the user sees, one line each.

No row may pass in silence, and none may end in an error from inside TensorFlow.
"""
