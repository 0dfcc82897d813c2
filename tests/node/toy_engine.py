"""The declaration of the toy engine: what its warm parent imports."""

import colorsys  # stands for something heavy
import os

START_PID = os.getpid()
IMPORTED = colorsys
smaller_batch = True  # toy.gpu heeds it
