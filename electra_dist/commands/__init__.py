"""What each word of `electra-dist` does: one function a command, called with what was typed.

They return the exit code. Each imports what it needs when it runs, so that no other command waits
for it and a login node needs no torch.
"""
