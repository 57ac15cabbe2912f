"""Run by every Python process of the suite as it starts, Ray's workers among them: seldom collect garbage.

Of the processor time that importing torch and Transformers takes, a fifth goes into collecting what is no garbage.
"""

import gc

gc.set_threshold(50_000, 20, 20)
