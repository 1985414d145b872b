import sys, subprocess, re, os, tempfile
import triton
from triton.experimental.gluon._runtime import GluonASTSource
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
sys.path.insert(0,__import__('os').path.dirname(__import__('os').path.dirname(__import__('os').path.abspath(__file__))))
import importlib.util, types
pkg = types.ModuleType('tk'); pkg.__path__=[sys.path[0]+'/triton_kernels']; sys.modules['tk']=pkg
import importlib
m = importlib.import_module('tk.prefill_hopper')
BIN='/work/main/.venv/lib/python3.11/site-packages/triton/backends/nvidia/bin/'
def build(TILE=128, CONSUMERS=2, ROWS=64, STAGES=2, Q_TMA=True, OVERLAP=True, TURNS=True, STORE=1, LAZY=True, GROUP=4, REGS=240, dt='bf16', sinks=False, dump=None, HEAD_DIM=128):
    sh='NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2, transposed=False, fp4_padded=False, cga_layout=[])'
    l2=gl.NVMMASharedLayout(128,16); l3=gl.NVMMASharedLayout(128,16,rank=3)
    sig=dict(q_rows=f'tensordesc<{dt}[{ROWS//GROUP}, {GROUP}, {HEAD_DIM}],{l3!r}>' if Q_TMA else 'constexpr', k_rows=f'tensordesc<{dt}[{TILE}, {HEAD_DIM}],{l2!r}>', v_rows=f'tensordesc<{dt}[{TILE}, {HEAD_DIM}],{l2!r}>',
      q='*'+dt, out='*'+dt, records='*i32', total='*i32', sinks='*fp32' if sinks else 'constexpr', kv_heads='i32', q_token_stride='i32', q_head_stride='i32', out_token_stride='i32', out_head_stride='i32', scaling='fp32')
    cons=dict(GROUP=GROUP,HEAD_DIM=HEAD_DIM,TILE=TILE,CONSUMERS=CONSUMERS,ROWS=ROWS,STAGES=STAGES,Q_TMA=Q_TMA,OVERLAP=OVERLAP,TURNS=TURNS,STORE=STORE,LAZY=LAZY,CONSUMER_REGISTERS=REGS)
    if not sinks: cons['sinks']=None
    if not Q_TMA: cons['q_rows']=None
    for k in cons: sig[k]='constexpr'
    fn=m.hopper_prefill_kernel
    sig={n:sig[n] for n in fn.arg_names}
    attrs={}
    for i,n in enumerate(fn.arg_names):
        if n in ('q','out','records','total','q_token_stride','q_head_stride','out_token_stride','out_head_stride'): attrs[(i,)]=[['tt.divisibility',16]]
    src=GluonASTSource(fn, sig, {(fn.arg_names.index(k),):v for k,v in cons.items()}, attrs)
    c=triton.compile(src, target=GPUTarget('cuda',90,32), options=dict(num_warps=ROWS//16))
    ptx=c.asm['ptx']
    with tempfile.NamedTemporaryFile(suffix='.ptx',mode='w',delete=False) as f: f.write(ptx)
    r=subprocess.run([BIN+'ptxas','-v','--gpu-name=sm_90a',f.name,'-o','/tmp/x.cubin'],capture_output=True,text=True)
    sass=subprocess.run([BIN+'cuobjdump','-sass','/tmp/x.cubin'],capture_output=True,text=True).stdout
    print('\n'.join(l for l in r.stderr.splitlines() if 'Used' in l or 'spill' in l or 'arning' in l or 'erf' in l))
    cnt={k:len(re.findall(r'\b'+k+r'\b',sass)) for k in ('HGMMA','USETMAXREG','LDL','STL','MUFU','UTMALDG','SHFL','FFMA','FMUL','FADD','FMNMX','BAR','WARPGROUP','SYNCS','R2UR')}
    print('shared',c.metadata.shared,'warps',c.metadata.num_warps,cnt)
    if dump:
        open(dump+'.ptx','w').write(ptx); open(dump+'.sass','w').write(sass); open(dump+'.ttgir','w').write(c.asm['ttgir'])
    return c
if __name__=='__main__':
    kw=dict(a.split('=') for a in sys.argv[1:])
    kw={k:(eval(v) if k not in('dump','dt') else v) for k,v in kw.items()}
    build(**kw)
