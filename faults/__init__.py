"""Real faults in real processes: does a run survive them, or does one line name what was destroyed?"""
