mod contract_store;
