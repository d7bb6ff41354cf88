"""Many runs, one verdict: does another loss win on my data, and how sure is that?"""
