"""rvps"""
