//! The engine's thread and its handle, on a real tiny model: queueing, hanging up, stopping, draining.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the lints spare test functions, but not their helpers"
)]

use std::{num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use kaito_engine::{
    Error, ErrorKind, FinishReason, GenerateOptions,
    remote::{GenerationEvent, GenerationRequest, GenerationStream, SequenceOutput},
    testing::{
        CPU_PAGE_SIZE, CpuOperations, Decoder, Engine, ExecutorLimits, KvCache, Packed, ResolveContext, Scheduler,
        SchedulerLimits, resolve,
    },
};
use kaito_kernels::ThreadPool;
use kaito_model::family;
use serde_json::{Value, json};

const MAX_WAITING: usize = 100;

fn engine(pages: usize) -> Engine {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures/mistral-window");
    let (config, weights) = family::load(&dir).unwrap();
    let threads = Arc::new(ThreadPool::new(NonZeroUsize::MIN));
    let limits = ExecutorLimits {
        pages,
        page_size: CPU_PAGE_SIZE,
        step_tokens: 32,
        step_logits: 32,
        sequences: 16,
        sequence_pages: pages,
    };
    let operations = CpuOperations::new(threads.clone(), Packed::F32);
    let decoder = Decoder::new(operations, config, weights, limits).unwrap();
    let limits = SchedulerLimits {
        sequences: 16,
        step_tokens: 32,
        step_tokens_beside_streams: 8,
        step_drafts: 0,
        step_scores: 0,
        long_above: None,
    };
    let scheduler = Scheduler::new(limits, KvCache::new(u32::try_from(pages).unwrap(), CPU_PAGE_SIZE));
    Engine::start(Box::new(decoder), threads, scheduler, MAX_WAITING).unwrap()
}

fn request(prompt_len: usize, options: Value) -> GenerationRequest {
    let options = GenerateOptions::from_json(options.as_object().unwrap()).unwrap();
    let context = ResolveContext {
        prompt_len,
        prefix_len: 0,
        vocab_size: 300,
        max_seq_len: 256,
        eos_token_ids: &[],
        pad_token_id: None,
    };
    let prompt = (0..prompt_len).map(|at| (at * 7 % 290) as u32 + 3).collect();
    GenerationRequest { prompt, params: resolve(&options, &context).unwrap() }
}

async fn outputs(mut stream: GenerationStream) -> Vec<SequenceOutput> {
    loop {
        match stream.next().await.expect("a stream ends with its last event") {
            GenerationEvent::Finished(outputs) => return outputs,
            GenerationEvent::Failed(error) => panic!("{error}"),
            GenerationEvent::Started | GenerationEvent::Chosen(_) => {}
        }
    }
}

async fn all_pages_free(engine: &Engine) -> bool {
    for _ in 0..1000 {
        let stats = engine.stats();
        if stats.pages_used == 0 && stats.running == 0 && stats.waiting == 0 {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hang_up_free_their_pages_and_disturb_nobody() {
    let engine = engine(50);
    let kinds = [
        json!({"do_sample": false, "max_new_tokens": 24}),
        json!({"do_sample": true, "seed": 7, "num_return_sequences": 3, "max_new_tokens": 24}),
        json!({"do_sample": false, "num_beams": 4, "max_new_tokens": 24}),
    ];
    let mut alone = Vec::new();
    for (kind, options) in kinds.iter().enumerate() {
        alone.push(outputs(engine.submit(request(5 + 9 * kind, options.clone())).unwrap()).await);
    }
    let clients: Vec<_> = (0..60)
        .map(|client| {
            let kind = client % kinds.len();
            let mut stream = engine.submit(request(5 + 9 * kind, kinds[kind].clone())).unwrap();
            tokio::spawn(async move {
                // A third of the clients hang up: before anything came, or after some events.
                match client % 9 {
                    0 => drop(stream),
                    1 | 2 => {
                        for _ in 0..client % 5 {
                            stream.next().await;
                        }
                    }
                    _ => return Some((kind, outputs(stream).await)),
                }
                None
            })
        })
        .collect();
    for client in clients {
        if let Some((kind, together)) = client.await.unwrap() {
            assert_eq!(together, alone[kind], "kind {kind} has another answer beside others than alone");
        }
    }
    assert!(all_pages_free(&engine).await, "{:?}", engine.stats());
    assert!(engine.stats().since_progress.is_none(), "an idle engine owes no progress");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_event_comes_when_the_pages_are_free() {
    let engine = engine(16);
    for _ in 0..20 {
        outputs(engine.submit(request(30, json!({"do_sample": false, "max_new_tokens": 4}))).unwrap()).await;
        assert_eq!(engine.stats().pages_used, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_is_stopped_where_it_stands_and_the_others_go_on() {
    let engine = engine(50);
    let options = json!({"do_sample": true, "seed": 3, "num_return_sequences": 3, "max_new_tokens": 200});
    let mut stream = engine.submit(request(6, options)).unwrap();
    let mut stopped = false;
    let outputs = loop {
        match stream.next().await.unwrap() {
            GenerationEvent::Chosen(_) if !stopped => {
                stream.stop_sequence(1);
                stopped = true;
            }
            GenerationEvent::Finished(outputs) => break outputs,
            GenerationEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    };
    let reasons: Vec<_> = outputs.iter().map(|output| output.finish_reason).collect();
    assert_eq!(reasons, [FinishReason::Length, FinishReason::Stop, FinishReason::Length]);
    assert_eq!(outputs[0].tokens.len(), 206);
    assert!(outputs[1].tokens.len() < 206, "{} tokens", outputs[1].tokens.len());
    assert_eq!(engine.stats().pages_used, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_can_never_run_are_refused_with_numbers() {
    let engine = engine(5);
    let greedy = |len, new: usize| request(len, json!({"do_sample": false, "max_new_tokens": new}));
    let refusal = |request| engine.submit(request).map(|_| ()).unwrap_err();

    let error = refusal(greedy(60, 40));
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(
        error.to_string(),
        "1 sequences of up to 100 tokens need 7 pages of the KV cache, but there are 5 (`kv_cache_memory`)"
    );
    let mut empty = greedy(1, 1);
    empty.prompt.clear();
    assert_eq!(refusal(empty).to_string(), "the prompt has no tokens; give it at least one");
    let mut foreign = greedy(1, 1);
    foreign.prompt[0] = 1_000_000;
    assert!(refusal(foreign).to_string().starts_with("the prompt holds token id 1000000, but"));
    let error = refusal(request(2, json!({"do_sample": false, "num_beams": 17, "max_new_tokens": 1})));
    assert_eq!(error.to_string(), "the request asks for 17 beams, but at most 16 run here (`max_batch_size`)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_a_draining_engine_finishes_what_it_has() {
    let engine = engine(50);
    let mut streams = Vec::new();
    let error = loop {
        match engine.submit(request(8, json!({"do_sample": false, "max_new_tokens": 200}))) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 10 * MAX_WAITING, "the queue never fills");
    };
    assert!(matches!(error, Error::TooBusy { limit: MAX_WAITING, .. }), "{error:?}");
    streams.truncate(8);

    engine.stop_accepting();
    let refused = engine.submit(request(8, json!({"do_sample": false, "max_new_tokens": 1})));
    assert_eq!(refused.map(|_| ()).unwrap_err().kind(), ErrorKind::ShuttingDown);
    let waiting = tokio::spawn(async move {
        for stream in streams {
            assert_eq!(outputs(stream).await[0].tokens.len(), 208);
        }
    });
    engine.drained().await;
    waiting.await.unwrap();
    assert_eq!(engine.stats().pages_used, 0);
}
