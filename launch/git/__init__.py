"""Git jobs: commits of others' repositories, fetched so that nothing in them, nor their servers, can run anything here.

Read :mod:`launch.git.remote` for what may be asked, :mod:`launch.git.environment` for what git is told,
:mod:`launch.git.mirror` for what is kept, :mod:`launch.git.code` for what others use.
"""
