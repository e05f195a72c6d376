import sys,time,tempfile,shutil,traceback
from pathlib import Path
import tests.test_kills as t
if __name__=="__main__":
    for name in sys.argv[1:] or t.METHODS:
        d=Path(tempfile.mkdtemp(dir="/tmp")); s=time.time()
        try: print(name, t.kill_everywhere(t.of_run(name), d), time.time()-s, flush=True)
        except AssertionError as e: traceback.print_exc(limit=-2); print(name,"FAILED",d, time.time()-s,flush=True); continue
        shutil.rmtree(d)
