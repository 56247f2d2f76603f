"""One small server per peer, as its users would write it: ``/echo`` sends back, ``/listen`` sends to all.

All have the defaults of their library, but where a comment says otherwise.
"""
