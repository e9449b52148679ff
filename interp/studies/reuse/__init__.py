"""The circuit-reuse study: do tasks share a circuit, does sharing mean anything, and can idle heads be put to work?"""
