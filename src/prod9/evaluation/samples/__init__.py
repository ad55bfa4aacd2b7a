"""Several samples of one volume against the truth: are they as uncertain as they ought to be?"""
