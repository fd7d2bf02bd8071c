"""Kinds of data, one module each: conversion and normalisation.

May import: contract, machine and errors.
Imported by: testing, pipeline and formats.
"""
