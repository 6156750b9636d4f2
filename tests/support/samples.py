"""A few rows of each form of a table of published runs, as text."""

MEASURED = (
    "id,source,model,n_params,layers,hidden,heads,kv_heads,ffn,vocab,seq_len,global_batch_seqs,micro_batch,gr"
    "ad_accum_or_microbatches,gpu,gpus,gpus_per_node,tp,pp,vp,cp,ep,dp,zero_or_fsdp,recompute,precision,optim"
    "izer,tokens_per_s_total,tokens_per_s_per_gpu,step_time_s,peak_mem_gib_per_gpu,notes,confidence,gpu_unit,"
    "train_kind\n"
    "LLMF-001,MosaicML llm-foundry benchmark tables,MPT-70b,64862437376,80,8192,64,64,32768,50368,2048,4096,8"
    ",1,H100-SXM-80GB,512,8,1,1,,1,,512,FSDP FULL_SHARD (ZeRO-3),full (per transformer block),bf16 (amp),Deco"
    'upledAdamW,515636.0,1007.0,16.26847,,"12-step run, FSDP mixed precision DEFAULT; inter-node NIC not stat'
    'ed; learned positions, ungated MLP 4d, tied embeddings (MPT)",complete,device,pretrain\n'
    "LLMF-164,MosaicML llm-foundry benchmark tables,MPT-3b,2667566080,32,2560,20,20,10240,50368,8192,64,1,8,A"
    '100-SXM-40GB,8,8,1,1,,1,,8,FSDP FULL_SHARD (ZeRO-3),none,bf16,DecoupledAdamW,57193.0,7149.0,9.167,,"12-s'
    "tep run, FSDP mixed precision PURE; PURE = params, grads and states kept in low precision; inter-node 16"
    '00 Gb/s RoCE; learned positions, ungated MLP 4d, tied embeddings (MPT)",complete,device,pretrain\n'
    "LLMF-071,MosaicML llm-foundry benchmark tables,MPT-3b,2730480640,32,2560,20,20,10240,50368,32768,144,3,6"
    ',H100-SXM-80GB,8,8,1,1,,1,,8,FSDP FULL_SHARD (ZeRO-3),full (per transformer block),"fp8 (amp_fp8, TE lin'
    'ears)",DecoupledAdamW,46853.0,5856.0,100.71056,,"12-step run, FSDP mixed precision DEFAULT; inter-node N'
    'IC not stated; learned positions, ungated MLP 4d, tied embeddings (MPT)",complete,device,pretrain\n'
    "LLMF-013,MosaicML llm-foundry benchmark tables,MPT-3b,2651837440,32,2560,20,20,10240,50368,2048,4096,8,1"
    ",H100-SXM-80GB,512,8,1,1,,1,,512,FSDP SHARD_GRAD_OP (ZeRO-2),none,bf16 (amp),DecoupledAdamW,11092218.0,2"
    '1664.0,0.75626,,"12-step run, FSDP mixed precision DEFAULT; inter-node NIC not stated; learned positions'
    ', ungated MLP 4d, tied embeddings (MPT)",complete,device,pretrain\n'
    "VTRN-002,vTrain ground truth (multi-node),GPT-3.6B,3600000000,30,3072,32,32,12288,51200,2048,512,4,2,A10"
    '0-SXM-80GB,64,8,1,1,,1,,64,,full,fp16,,288204.9,4503.2,3.6383,,"Megatron-DeepSpeed, full activation reco'
    'mpute, 8xA100-80 per node, 4xHDR (800 Gb/s); vocab 51200 is Megatron default (not in CSV)",complete,devi'
    "ce,pretrain\n"
    "KORT-003,Korthikanti et al. 2022 (via Calculon validation),GPT-175B,175000000000,96,12288,96,96,49152,51"
    '200,2048,64,1,64,A100-SXM-80GB,64,8,8,8,3,1,,1,,full,fp16,"Adam, no ZeRO",7229.6,112.96,18.13,,"model-st'
    "ate 45.56 GiB/GPU; activation memory none 66.84 GiB, seq-par+selective 12.35 GiB (Calculon reproduction "
    'of the paper figures)",complete,device,pretrain\n'
    "SMAX-001,SimuMax B200 real runs,llama3_70b_l12_tp1_pp2_dp4_mbc4_cef,,12,8192,64,8,28672,128256,4096,16,1"
    ',4,B200,8,8,1,2,,1,,4,,none (block with 0 layers in launcher),bf16,"Megatron distributed optimizer, sequ'
    'ence parallel",77741.4,9717.67,0.843,66.55,"single node, TP/grad/param comm overlap OFF, CE fusion; seq '
    '4096/mbs 1 from sweep json",complete,device,pretrain\n'
    "SMAX-041,SimuMax B200 real runs,llama3_70b_l12_tp2_cp4_pp1_dp1_seq131072_mbc4_cef,,12,8192,64,8,28672,12"
    '8256,131072,4,1,4,B200,8,8,2,1,,4,,1,,none (block with 0 layers in launcher),bf16,"Megatron distributed '
    'optimizer, sequence parallel",46332.8,5791.6,11.3157,112.67,"single node, TP/grad/param comm overlap OFF'
    ', CE fusion; seq 4096/mbs 1 from sweep json",complete,device,pretrain\n'
    "MLPF-051,MLPerf Training v5.0,Llama2-70B,68977000000,80,8192,64,8,28672,32000,8192,8,1,1,MI300X,8,8,1,1,"
    ",1,,8,,block: full recompute of 21 of 80 layers,fp8 (hybrid TE),AdamW on LoRA params (distributed optimi"
    'zer),16608.57,2076.07,3.94591,,"LoRA r16 on attention linears, SCROLLS GovReport packed to 8192; median '
    "tracked_stats throughput (samples/s, excludes eval, includes optimizer and data); submission MI300X_EPYC"
    '_9575F_pytorch",complete,device,lora\n'
    "MLPF-003,MLPerf Training v4.0,Llama2-70B,68977000000,80,8192,64,8,28672,32000,8192,8,1,8,H100-SXM-80GB,4"
    ",4,4,1,,1,,1,,none,fp8 (hybrid TE),AdamW on LoRA params (distributed optimizer),8033.99,2008.5,8.15734,,"
    '"LoRA r16 on attention linears, SCROLLS GovReport packed to 8192; median tracked_stats throughput (sampl'
    'es/s, excludes eval, includes optimizer and data); submission GX2560M7_H100_SXM_80GBx4",complete,device,'
    "lora\n"
    "TUNE-012,torchtune README optimization ladder,Llama3.2-3B [+chunked CE],3212749824,28,3072,24,8,8192,128"
    '256,4096,2,2,1,A100,1,,1,1,,1,,1,,none,"bf16 (params, grads and states)",AdamW bf16,9174.0,9174,0.89296,'
    '42.9,"compile, chunked cross entropy; tied embeddings; peak memory ACTIVE (torch), A100 variant not stat'
    'ed; packed to 4096",complete,device,sft\n'
    "TUNE-015,torchtune README optimization ladder,Llama3.2-3B [+activation offload],3212749824,28,3072,24,8,"
    '8192,128256,4096,2,2,1,A100,1,,1,1,,1,,1,,full,"bf16 (params, grads and states)",AdamW bf16 fused in bac'
    'kward,7301.0,7301,1.12204,21.8,"compile, chunked CE, activation offloading to CPU; tied embeddings; peak'
    ' memory ACTIVE (torch), A100 variant not stated; packed to 4096",complete,device,sft\n'
    "DGXC-002,NVIDIA DGX Cloud benchmarking recipes,Llama3.1-8B,8030000000,32,4096,32,8,14336,128256,8192,128"
    ",1,32,H100-SXM-80GB,8,8,1,1,,2,,4,Megatron distributed optimizer,,fp8,,112387.6,14048.45,9.33,,,complete"
    ",device,pretrain\n"
    "MBSK-001,NVIDIA Megatron-Bridge perf skill card,Moonlight-16B-A3B,16000000000,27,2048,16,16,1408,163840,"
    "4096,4,1,1,H100-SXM-80GB,8,8,2,1,,1,8,4,,none,bf16,,35837.1,4479.64,0.45718000000000003,36.618,MLA; MoE "
    "64 experts top-6 +2 shared; recompute ablation,complete,device,pretrain\n"
)
"""Rows of `measured_runs.csv`; their sources are in their second column."""

ULTRASCALE = (
    "job_id,nodes,seq_len,micro_batch,num_micro_batches,global_batch_seqs,tokens_per_s_per_gpu,all_gather_gb_"
    "per_s,all_gather_intra_gb_per_s,all_reduce_intra_gb_per_s,peak_allocated_gb,peak_reserved_gb,dp,pp,tp,tp"
    "_mode,hidden_size,ffn,num_layers,num_heads,num_kv_heads,vocab_size,tie_word_embeddings,dtype,zero_stage,"
    "accumulate_grad_in_fp32,after_pp_fix,status\n"
    "13436292,1.0,4096,1,32.0,256.0,39273.41,263.66,263.7,453.61,25.07,36.67,8,1,1,REDUCE_SCATTER,2048,8192,1"
    "6,32,32.0,131072,True,torch.bfloat16,0,True,False,Success\n"
    "14097146,1.0,4096,1,64.0,256.0,15566.96,263.61,263.89,455.01,27.92,41.46,4,2,1,REDUCE_SCATTER,3072,8192,"
    "28,32,32.0,131072,True,torch.bfloat16,1,True,False,Success\n"
    "14098602,2.0,4096,4,16.0,256.0,3223.73,41.59,41.84,45.1,16.53,76.93,4,4,1,REDUCE_SCATTER,3072,8192,28,32"
    ",32.0,131072,True,torch.bfloat16,1,True,True,Success\n"
    "14280956,8.0,4096,1,256.0,256.0,664.99,51.09,236.81,415.0,26.21,63.07,1,16,4,REDUCE_SCATTER,8192,28672,8"
    "0,64,8.0,131072,False,torch.bfloat16,0,True,True,Success\n"
    "14113515,1.0,4096,4,32.0,1048576.0,,,,,,,2,1,4,REDUCE_SCATTER,4096,14336,32,32,,131072,,,0,,True,OOM\n"
    "14311343,8.0,4096,2,32.0,1048576.0,,,,,,,4,4,4,REDUCE_SCATTER,16384,,126,128,,49152,,,1,,True,OOM\n"
    "14098552,1.0,4096,1,256.0,256.0,14833.07,264.37,265.04,462.1,14.41,32.66,1,8,1,REDUCE_SCATTER,3072,8192,"
    "28,32,32.0,131072,True,torch.bfloat16,0,True,True,Success\n"
)
"""Rows of `ultrascale_h100.csv`: nanotron on H100, the Ultra-Scale campaign of Hugging Face."""

VTRAIN = (
    "# GPUs,global batch,micro batch,hidden size,attention heads,# layers,sequence length,tensor parallelism,"
    "data parallelism,pipeline parallelism,iteration time (ms)\n"
    "4,16,4,2048,16,24,1024,1,2,2,410.490577\n"
    "4,16,4,2048,16,24,1024,1,2,2,410.490577\n"
    "8,8,4,2048,16,16,1024,2,1,4,151.982405\n"
)
"""Rows of `vtrain_a100_single_node.csv`: VIA-Research/vTrain."""

SAMPLES = {"measured": MEASURED, "ultrascale": ULTRASCALE, "vtrain": VTRAIN}
