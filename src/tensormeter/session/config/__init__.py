"""A run's configuration and summary: conversion of Python objects to JSON values, and the mappings that scripts write to."""
