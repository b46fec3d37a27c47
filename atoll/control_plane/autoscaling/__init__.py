"""Which machines the cluster has: started for gangs that wait, ended when nobody needs them, within a budget.

`core.Autoscaler` decides, out of what was seen and the file that `spec_toml.parse` reads; providers, each behind
`provider.Provider`, start and end machines; `loop_runtime.Loop` joins the two.
"""
