"""Judges translations: how far are they from real images, and what do they lack?"""
