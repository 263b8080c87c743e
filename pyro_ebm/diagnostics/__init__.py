"""What draws are worth: conversion to ArviZ, and convergence by it."""
