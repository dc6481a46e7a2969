"""softtee"""
