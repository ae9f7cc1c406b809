.PHONY: endurance

# What takes too long for the tests: kills, full disks, many processes, 100,000 images. An hour on two cores.
endurance:
	python tests/endurance/run_all.py
