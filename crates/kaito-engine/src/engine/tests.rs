//! A panic in the work for one request fails that request alone, whichever part of the work it is.

use serde_json::{Value, json};

use super::*;
use crate::{
    device::DeviceErrorKind,
    generate::{FinishReason, GenerateOptions, Pooling, ResolveContext},
    scheduler::Phase,
    testing::{At, FakeEngine, VOCAB},
};

const PAGES: u32 = 120;
const SEQUENCES: usize = 24;
/// The request that panics.
const VICTIM: RequestId = 2;
/// A token that no prompt and, with its ban, no answer has.
const POISON: u32 = 63;

fn fake() -> FakeEngine {
    FakeEngine::start(PAGES, SEQUENCES, 8).unwrap()
}

fn request(prompt: Vec<u32>, options: &Value) -> GenerationRequest {
    let mut options = options.as_object().unwrap().clone();
    options.insert("bad_words_ids".to_owned(), json!([[POISON]]));
    let context = ResolveContext {
        prompt_len: prompt.len(),
        prefix_len: 0,
        vocab_size: VOCAB,
        max_seq_len: 200,
        eos_token_ids: &[],
        pad_token_id: None,
    };
    let options = GenerateOptions::from_json(&options).unwrap();
    GenerationRequest { params: GenerationParams::resolve(&options, &context).unwrap(), prompt }
}

/// Requests of all kinds; some begin alike.
fn requests() -> Vec<GenerationRequest> {
    let options = [
        json!({"do_sample": false, "max_new_tokens": 30}),
        json!({"do_sample": false, "num_beams": 4, "max_new_tokens": 18}),
        json!({"do_sample": true, "seed": 4, "num_return_sequences": 3, "max_new_tokens": 20, "no_repeat_ngram_size": 3}),
        json!({"do_sample": false, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "max_new_tokens": 15}),
        json!({"do_sample": true, "seed": 7, "temperature": 0.1, "max_new_tokens": 40}),
        json!({"do_sample": true, "seed": 8, "num_return_sequences": 40, "top_k": 5, "max_new_tokens": 3}),
    ];
    let prompt = |at: usize| (0..6 + 5 * at as u32).map(|n| if n < 6 { n } else { (n * 7 + at as u32) % 60 }).collect();
    options.iter().enumerate().map(|(at, options)| request(prompt(at), options)).collect()
}

/// Submits requests while the device waits, so that they run together however slow this thread is.
fn submit_all(fake: &FakeEngine, requests: Vec<GenerationRequest>) -> Vec<GenerationStream> {
    fake.device.allow(0);
    requests.into_iter().map(|request| fake.engine.submit(request).unwrap()).collect()
}

/// How a request ends, and whether its client heard that it started.
async fn ending(mut stream: GenerationStream) -> (Result<Vec<SequenceOutput>, String>, bool) {
    let mut started = false;
    loop {
        match stream.next().await.unwrap() {
            GenerationEvent::Started => started = true,
            GenerationEvent::Chosen(_) => {}
            GenerationEvent::Finished(outputs) => return (Ok(outputs), started),
            GenerationEvent::Failed(error) => return (Err(error.to_string()), started),
        }
    }
}

/// What each request comes to on an engine of its own.
async fn alone() -> Vec<Vec<SequenceOutput>> {
    let mut outputs = Vec::new();
    for request in requests() {
        outputs.push(ending(fake().engine.submit(request).unwrap()).await.0.unwrap());
    }
    outputs
}

async fn is_clean(fake: &FakeEngine) {
    fake.engine.drained().await;
    let stats = fake.engine.stats();
    assert_eq!((stats.pages_used, stats.running, stats.waiting), (0, 0, 0), "{stats:?}");
    assert!(stats.since_progress.is_none() && !stats.stopped);
    // And it goes on.
    let (outputs, _) = ending(fake.engine.submit(requests().swap_remove(0)).unwrap()).await;
    assert!(outputs.is_ok());
}

/// Runs all requests with `arm`ed faults, and checks that all but the victim come out as they do alone.
async fn run(expected: &[Vec<SequenceOutput>], what: &str, arm: impl FnOnce(&FakeEngine)) -> Result<(), String> {
    let fake = fake();
    arm(&fake);
    let streams = submit_all(&fake, requests());
    fake.device.release();
    let mut victim = Ok(());
    for (id, (stream, expected)) in streams.into_iter().zip(expected).enumerate() {
        match ending(stream).await {
            (Ok(outputs), true) => assert_eq!(&outputs, expected, "{what}: request {id}"),
            (Err(error), _) if id as RequestId == VICTIM => victim = Err(error),
            ending => panic!("{what}: request {id} ended as {ending:?}"),
        }
    }
    is_clean(&fake).await;
    assert!(fake.requests.spent(), "{what}: nothing panicked");
    victim
}

const PANICKED: &str = "the computation of this request panicked; see the log";

#[tokio::test]
async fn a_panic_in_any_part_of_the_work_for_a_request_fails_that_request_alone() {
    let expected = alone().await;
    assert_eq!(run(&expected, "no fault", |_| ()).await, Ok(()));
    let phases =
        [Phase::Submit, Phase::Start, Phase::Schedule, Phase::Note, Phase::Choose, Phase::Settle, Phase::Remove];
    for phase in phases {
        let what = format!("{phase:?}");
        let victim = run(&expected, &what, |fake| fake.requests.arm(phase, VICTIM)).await;
        assert_eq!(victim, Err(PANICKED.to_owned()), "{phase:?}");
    }
}

/// As above, when the request has been running for a while and others are in the middle of theirs.
#[tokio::test]
async fn a_panic_in_the_middle_of_a_generation_fails_that_request_alone() {
    let expected = alone().await;
    for phase in [Phase::Schedule, Phase::Note, Phase::Choose, Phase::Settle, Phase::Stop, Phase::Remove] {
        let fake = fake();
        let streams = submit_all(&fake, requests());
        fake.device.allow(9);
        fake.device.waits().await;
        fake.requests.arm(phase, VICTIM);
        streams[VICTIM as usize].stop_sequence(1);
        fake.device.release();
        for (id, (mut stream, expected)) in streams.into_iter().zip(&expected).enumerate() {
            if id as RequestId != VICTIM {
                assert_eq!(ending(stream).await.0.as_ref(), Ok(expected), "{phase:?}: request {id}");
                continue;
            }
            let mut tokens = 0;
            let error = loop {
                match stream.next().await.unwrap() {
                    GenerationEvent::Chosen(chosen) => tokens += chosen.len(),
                    GenerationEvent::Started => {}
                    GenerationEvent::Finished(_) => panic!("{phase:?}: nothing panicked"),
                    GenerationEvent::Failed(error) => break error,
                }
            };
            assert!(tokens > 0, "{phase:?}: it was in the middle");
            let kind = error.kind();
            assert_eq!((error.to_string().as_str(), kind), (PANICKED, crate::ErrorKind::Internal), "{phase:?}");
        }
        is_clean(&fake).await;
    }
}

/// Every request panics in every part of its work, early and late, with pages for all and with so few that requests lose
/// theirs: a request that does not panic gets the tokens that it gets alone.
#[tokio::test]
async fn panics_anywhere_disturb_nobody_else() {
    let expected = alone().await;
    let phases = [Phase::Schedule, Phase::Note, Phase::Choose, Phase::Settle, Phase::Remove, Phase::Stop];
    let (mut struck, mut preempted) = (0, 0);
    for (at, phase) in phases.into_iter().enumerate() {
        for victim in 0..expected.len() {
            for (pages, passes) in [(PAGES, 2 + at), (40, 9 + victim), (PAGES, 14)] {
                let fake = FakeEngine::start(pages, SEQUENCES, 8).unwrap();
                let streams = submit_all(&fake, requests());
                fake.device.allow(passes);
                fake.device.waits().await;
                fake.requests.arm(phase, victim as RequestId);
                if phase == Phase::Stop {
                    streams[victim].stop_sequence(0);
                }
                fake.device.release();
                for (id, (stream, expected)) in streams.into_iter().zip(&expected).enumerate() {
                    match ending(stream).await.0 {
                        Ok(outputs) => assert_eq!(&outputs, expected, "{phase:?} of {victim}: request {id}"),
                        Err(error) => {
                            assert_eq!((id, error.as_str()), (victim, PANICKED), "{phase:?}");
                            struck += 1;
                        }
                    }
                }
                preempted += fake.engine.stats().preemptions_total;
                is_clean(&fake).await;
            }
        }
    }
    assert!(struck > 70 && preempted > 0, "{struck} panicked, {preempted} lost their pages");
}

#[tokio::test]
async fn a_panic_while_a_request_is_cancelled_disturbs_nobody() {
    let expected = alone().await;
    let fake = fake();
    fake.requests.arm(Phase::Remove, VICTIM);
    let mut streams = submit_all(&fake, requests());
    fake.device.allow(9);
    fake.device.waits().await;
    drop(streams.remove(VICTIM as usize));
    fake.device.release();
    for (id, stream) in streams.into_iter().enumerate() {
        let id = id + usize::from(id as RequestId >= VICTIM);
        assert_eq!(ending(stream).await.0.as_ref(), Ok(&expected[id]), "request {id}");
    }
    is_clean(&fake).await;
    assert!(fake.requests.spent());
}

#[tokio::test]
async fn a_forward_pass_that_panics_is_computed_again_for_each_request() {
    let expected = alone().await;
    let once = run(&expected, "a fault of the device", |fake| fake.device.once()).await;
    assert_eq!(once, Ok(()), "a fault that does not come again fails nobody");

    // The pass of one request panics each time; the others share their passes with it.
    let fake = fake();
    fake.device.poison(POISON);
    let mut all = requests();
    all[VICTIM as usize].prompt[3] = POISON;
    let streams = submit_all(&fake, all);
    fake.device.release();
    for (id, stream) in streams.into_iter().enumerate() {
        let (ending, _) = ending(stream).await;
        if id as RequestId == VICTIM {
            assert_eq!(ending, Err(PANICKED.to_owned()));
        } else {
            assert_eq!(ending.as_ref(), Ok(&expected[id]), "request {id}");
        }
    }
    is_clean(&fake).await;
}

/// Those whose step fails hear the device's words; those that wait, and those that come, get their tokens.
#[tokio::test]
async fn a_step_that_the_device_can_not_compute_fails_its_requests_and_no_others() {
    let expected = alone().await;
    let kinds = [DeviceErrorKind::OutOfMemory, DeviceErrorKind::Unsupported, DeviceErrorKind::Other];
    for (passes, kind) in kinds.into_iter().enumerate() {
        for at in [At::Submit, At::Collect] {
            // The third and the fourth request run with nobody else, or in what the first ones leave.
            let fake = FakeEngine::start(PAGES, 5, 8).unwrap();
            let streams = submit_all(&fake, requests().into_iter().take(4).collect());
            fake.device.allow(passes);
            fake.device.waits().await;
            let running = fake.engine.stats().running;
            fake.device.fail_next(kind, at);
            fake.device.release();
            let mut failed = 0;
            for (id, (stream, expected)) in streams.into_iter().zip(&expected).enumerate() {
                match ending(stream).await.0 {
                    Ok(outputs) => assert_eq!(&outputs, expected, "{kind:?} {at:?}: request {id}"),
                    Err(error) => {
                        assert_eq!(error, "fake: a failure, as asked for");
                        failed += 1;
                    }
                }
            }
            assert!(running > 0 && (1..4).contains(&failed), "{kind:?} {at:?}: {failed} of {running} sequences");
            assert_eq!(fake.engine.stats().device_lost, None);
            is_clean(&fake).await;
        }
    }
}

#[tokio::test]
async fn a_lost_device_fails_all_requests_and_takes_no_more() {
    for at in [At::Submit, At::Collect] {
        let fake = FakeEngine::start(PAGES, 5, 8).unwrap();
        let mut streams = submit_all(&fake, requests());
        fake.device.allow(3);
        fake.device.waits().await;
        fake.device.fail_next(DeviceErrorKind::Lost, at);
        // It is let in before the device is lost, and its command is obeyed after that.
        streams.push(fake.engine.submit(requests().swap_remove(0)).unwrap());
        fake.device.release();
        for stream in streams {
            assert_eq!(ending(stream).await.0, Err("fake: a failure, as asked for".to_owned()), "{at:?}");
            let lost = fake.engine.stats().device_lost;
            assert_eq!(lost.map(|error| error.kind), Some(DeviceErrorKind::Lost), "known before anybody is told");
        }
        let refusal = fake.engine.submit(requests().swap_remove(0)).map(drop).unwrap_err();
        assert_eq!(refusal.to_string(), "fake: a failure, as asked for");
        assert_eq!(refusal.kind(), crate::ErrorKind::ShuttingDown);
        fake.engine.drained().await;
        let stats = fake.engine.stats();
        assert_eq!((stats.pages_used, stats.running, stats.waiting, stats.stopped), (0, 0, 0, false), "{stats:?}");
    }
}

/// A pass panics, and one of its requests, computed alone, fails in another way.
#[tokio::test]
async fn a_device_that_fails_after_a_panic_fails_the_request_under_work() {
    let expected = alone().await;
    let fake = fake();
    let streams = submit_all(&fake, requests());
    fake.device.allow(4);
    fake.device.waits().await;
    fake.device.once();
    fake.device.fail_next(DeviceErrorKind::OutOfMemory, At::Collect);
    fake.device.release();
    let mut failed = Vec::new();
    for (id, (stream, expected)) in streams.into_iter().zip(&expected).enumerate() {
        match ending(stream).await.0 {
            Ok(outputs) => assert_eq!(&outputs, expected, "request {id}"),
            Err(error) => failed.push(error),
        }
    }
    assert_eq!(failed, ["fake: a failure, as asked for"]);
    is_clean(&fake).await;
}

#[tokio::test]
async fn sequences_beyond_the_batch_run_in_waves_and_come_out_the_same() {
    let options = json!({"do_sample": true, "seed": 11, "num_return_sequences": 20, "max_new_tokens": 12, "eos_token_id": [5, 6, 7, 8, 9]});
    let prompt: Vec<u32> = (0..23).collect();
    let mut outcomes = Vec::new();
    // All at once, in waves, one after the other, with and without drafts; and in waves since there are few pages.
    for (pages, sequences, drafts) in [(300, 20, 0), (300, 7, 0), (300, 1, 0), (300, 1, 8), (24, 20, 0)] {
        let fake = FakeEngine::start(pages, sequences, drafts).unwrap();
        let mut stream = fake.engine.submit(request(prompt.clone(), &options)).unwrap();
        let (mut streamed, mut most) = (vec![Vec::new(); 20], 0);
        let outputs = loop {
            most = most.max(fake.engine.stats().running);
            match stream.next().await.unwrap() {
                GenerationEvent::Started => {}
                GenerationEvent::Chosen(chosen) => {
                    chosen.iter().for_each(|chosen| streamed[chosen.sequence].push(chosen.token));
                }
                GenerationEvent::Finished(outputs) => break outputs,
                GenerationEvent::Failed(error) => panic!("{error}"),
            }
        };
        assert!(most <= sequences, "{most} of {sequences} sequences");
        for (output, streamed) in outputs.iter().zip(&streamed) {
            assert_eq!((&output.tokens[..23], &output.tokens[23..]), (&prompt[..], &streamed[..]));
        }
        let stats = fake.engine.stats();
        assert_eq!(stats.generated_tokens_total, streamed.iter().map(Vec::len).sum::<usize>() as u64);
        assert_eq!((stats.pages_used, stats.prompt_tokens_total), (0, 23));
        outcomes.push(outputs);
    }
    let reasons: Vec<_> = outcomes[0].iter().map(|output| output.finish_reason).collect();
    assert!(reasons.contains(&FinishReason::EndToken) && reasons.contains(&FinishReason::Length), "{reasons:?}");
    assert!(outcomes.iter().all(|outcome| outcome == &outcomes[0]));
}

#[tokio::test]
async fn sequences_of_waves_can_be_stopped_before_and_after_they_begin() {
    let options = json!({"do_sample": true, "seed": 3, "num_return_sequences": 6, "max_new_tokens": 100});
    let fake = FakeEngine::start(200, 2, 0).unwrap();
    fake.device.allow(0);
    let mut stream = fake.engine.submit(request(vec![1, 2, 3], &options)).unwrap();
    let mut seen = [0; 6];
    let outputs = loop {
        match stream.next().await.unwrap() {
            GenerationEvent::Started => {
                stream.stop_sequence(3);
                fake.device.allow(1);
            }
            GenerationEvent::Chosen(chosen) => {
                for chosen in chosen {
                    seen[chosen.sequence] += 1;
                    // The first wave ends by being stopped, the others have one that is.
                    if seen[chosen.sequence] == 1 && chosen.sequence != 2 && chosen.sequence != 5 {
                        stream.stop_sequence(chosen.sequence);
                    }
                }
                fake.device.allow(1);
            }
            GenerationEvent::Finished(outputs) => break outputs,
            GenerationEvent::Failed(error) => panic!("{error}"),
        }
    };
    let lengths: Vec<_> = outputs.iter().map(|output| output.tokens.len() - 3).collect();
    assert_eq!((lengths[2], lengths[3], lengths[5]), (100, 0, 100));
    // One more was on its way when the stop came.
    assert!([0, 1, 4].iter().all(|&at| lengths[at] <= 2), "{lengths:?}");
    assert_eq!(fake.engine.stats().pages_used, 0);
}

#[tokio::test]
async fn a_client_that_is_gone_frees_its_pages_within_a_step() {
    let fake = fake();
    let mut streams = submit_all(&fake, requests());
    fake.device.allow(6);
    fake.device.waits().await;
    let before = fake.engine.stats();
    assert!(before.running > 1 && before.pages_used > 9, "{before:?}");
    streams.truncate(1);
    fake.device.allow(1);
    fake.device.waits().await;
    let after = fake.engine.stats();
    // A prompt of 6 tokens and its answer of up to 30.
    assert!(after.running == 1 && after.waiting == 0 && after.pages_used <= 9, "{after:?}");
    fake.device.release();
}

/// The thread is gone and handles are there: nobody waits for it.
#[tokio::test]
async fn an_engine_whose_thread_is_gone_closes_every_request() {
    let fake = fake();
    fake.device.allow(0);
    let running = fake.engine.submit(request(vec![1; 9], &json!({"do_sample": false, "max_new_tokens": 150}))).unwrap();
    fake.engine.kill();
    let waiting = fake.engine.submit(request(vec![2], &json!({"do_sample": false, "max_new_tokens": 1}))).unwrap();
    fake.device.release();
    for stream in [running, waiting] {
        assert_eq!(ending(stream).await.0, Err("the engine has stopped".to_owned()));
    }
    // Until the thread is gone altogether, requests may be let in; they end like the others.
    loop {
        match fake.engine.submit(requests().swap_remove(0)) {
            Ok(stream) => assert_eq!(ending(stream).await.0, Err("the engine has stopped".to_owned())),
            Err(error) => {
                assert!(matches!(error, Error::EngineStopped), "{error}");
                break;
            }
        }
    }
    fake.engine.drained().await;
    let stats = fake.engine.stats();
    assert!(stats.stopped && stats.waiting == 0 && stats.since_progress.is_none(), "{stats:?}");
}

/// The hidden state that the fake model has behind each token of a prompt is a hash of all tokens up to it.
fn fake_states(prompt: &[u32]) -> Vec<f32> {
    let state = |end: usize| {
        let hash = |hash: u32, token: &u32| (hash ^ (token + 1)).wrapping_mul(0x9e37_79b1).rotate_left(13);
        (prompt[..=end].iter().fold(17, hash) >> 16) as f32
    };
    (0..prompt.len()).map(state).collect()
}

#[tokio::test]
async fn prompts_are_pooled_beside_requests_for_text() {
    let fake = fake();
    let prompt: Vec<u32> = (0..75).map(|at| at * 7 % 60).collect();
    let states = fake_states(&prompt);
    let mean = states.iter().map(|&x| f64::from(x)).sum::<f64>() / 75.0;
    let pool =
        |pooling| GenerationRequest { params: GenerationParams::pool(pooling, prompt.len()), prompt: prompt.clone() };
    let expected = alone().await;
    let texts = submit_all(&fake, requests());
    let pools: Vec<_> = [Pooling::Mean, Pooling::Last, Pooling::Mean]
        .map(|pooling| (pooling, fake.engine.submit(pool(pooling)).unwrap()))
        .into();
    fake.device.release();
    for (pooling, mut stream) in pools {
        let ended = loop {
            match stream.next().await.unwrap() {
                GenerationEvent::Finished(outputs) => break outputs,
                GenerationEvent::Started => {}
                event => panic!("{event:?}"),
            }
        };
        assert!(ended.is_empty());
        let value = if pooling == Pooling::Mean { mean as f32 } else { states[74] };
        assert_eq!(stream.take_prompt_numbers().unwrap().pooled, Some(vec![value]), "{pooling:?}");
    }
    for (stream, expected) in texts.into_iter().zip(&expected) {
        assert_eq!(&ending(stream).await.0.unwrap(), expected);
    }
    is_clean(&fake).await;
}
